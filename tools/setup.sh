#!/usr/bin/env bash
# Makes .venv with the locked packages, and ffmpeg. Run by `make setup`; safe to kill and run again.
#   PYTHON=python3.11   the interpreter to build on
#   NO_APT=1            install no system package even where that is possible
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[setup] %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

python=
for candidate in ${PYTHON:-python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "no Python 3.11 in ${PYTHON:-PATH} (the lock file is for 3.11); install it or name it with PYTHON=/path/to/python3.11"

# Two set-ups at once (make -j, two terminals) would write into one .venv.
exec 9>.setup.lock
flock 9

can_apt() { [ -z "${NO_APT:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_log=$(mktemp)
apt_install() { # in the background: the Python packages arrive meanwhile
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >"$apt_log" 2>&1
}
wanted=()
command -v ffmpeg >/dev/null || wanted+=(ffmpeg)
command -v g++ >/dev/null || wanted+=(g++)
"$python" -c 'import ensurepip, venv' 2>/dev/null || wanted+=(python3-venv)
apt_pid=
if [ ${#wanted[@]} -gt 0 ] && can_apt; then
    say "apt-get install ${wanted[*]}"
    apt_install "${wanted[@]}" 9>&- &
    apt_pid=$!
    case " ${wanted[*]} " in *python3-venv*) wait "$apt_pid" || true; apt_pid= ;; esac
fi

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    say "creating .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || fail "cannot create .venv with $python; on Debian: apt-get install python3-venv"
fi
say "installing the packages of requirements.lock (about 6 GB with torch's CUDA libraries)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep -oE '^uv==[^ ]+' requirements.lock)"
# uv is several times faster; pip honours mirrors from pip.conf that uv does not read.
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock ||
    .venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock ||
    fail "the packages of requirements.lock could not be installed; check the network and the disk (6 GB), then run make setup again"
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e .

if [ -n "$apt_pid" ] && ! wait "$apt_pid"; then
    say "apt-get failed (last line: $(tail -n 1 "$apt_log")); going on with what is here"
fi
rm -f "$apt_log"
if command -v ffmpeg >/dev/null; then say "ffmpeg: $(command -v ffmpeg)"; else say "ffmpeg: the binary of the imageio-ffmpeg wheel"; fi

sha256sum requirements.lock pyproject.toml tools/setup.sh > .venv/.ready
say "ready"
