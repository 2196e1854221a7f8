#!/usr/bin/env bash
# Installs SLURM and munge from Debian's packages, for the cluster tests. Does nothing where they are already there.
set -euo pipefail

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

missing=()
command -v slurmctld >/dev/null || missing+=(slurmctld)
command -v slurmd >/dev/null || missing+=(slurmd)
command -v sbatch >/dev/null || missing+=(slurm-client)
command -v munged >/dev/null || missing+=(munge)
[ ${#missing[@]} -gt 0 ] || exit 0

[ "$(id -u)" = 0 ] || fail "the cluster tests need ${missing[*]}: run them as root, or install these packages first"
command -v apt-get >/dev/null || fail "the cluster tests need ${missing[*]}: install them by hand (no apt-get here)"
printf '[cluster] apt-get install %s\n' "${missing[*]}"
log=$(mktemp)
# The packages try to start system daemons; the tests start their own, with their own configuration.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' > "$policy"; chmod 755 "$policy"; made_policy=1; fi
trap '[ -z "$made_policy" ] || rm -f "$policy"; rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; fail "apt-get could not install ${missing[*]}"; }
