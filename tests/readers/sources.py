"""The matrix of files: containers, codecs, display matrices, edit lists, clocks, colours. Names say what is odd."""

from tests.readers.painting import (
    TURNS,
    Source,
    copied,
    edited,
    ends_at,
    joined,
    with_cover_first,
    with_other_stream,
    with_sound,
    without_start,
)

X264 = "libx264 -qp 8 -bf 2 -g 6"
X265 = "libx265 -qp 8 -g 6 -x265-params log-level=none:bframes=2"
VP9 = "libvpx-vp9 -crf 10 -b:v 0 -deadline realtime -cpu-used 8 -g 6"
VP8 = "libvpx -crf 4 -b:v 4M -deadline realtime -cpu-used 8 -g 6"
AV1 = "libsvtav1 -qp 10 -preset 12 -g 6 -svtav1-params lp=1"
FFV1 = "ffv1"
QUALITY = "-q:v 2"

SOURCES: dict[str, Source] = {f"turn-{turn}": Source(turn=turn) for turn in TURNS}
SOURCES |= {
    # containers and codecs
    "mkv-h264": Source("mkv"),
    "mov-prores": Source("mov", "prores_ks", "yuv422p10le"),
    "mov-mjpeg-vflip": Source("mov", f"mjpeg {QUALITY}", "yuvj420p", full=True, turn="vflip"),
    "mp4-mjpeg": Source("mp4", f"mjpeg {QUALITY}", "yuvj420p", full=True),
    "mp4-mjpeg-rot90": Source("mp4", f"mjpeg {QUALITY}", "yuvj420p", full=True, turn="rot90"),
    "mp4-hevc-rot270": Source("mp4", X265, turn="rot270"),
    "mp4-hevc": Source("mp4", X265),
    "mp4-av1": Source("mp4", AV1),
    "mkv-av1": Source("mkv", AV1),
    "mp4-mpeg4-rot180": Source("mp4", f"mpeg4 -bf 2 {QUALITY}", turn="rot180"),
    "mp4-vp9-transpose": Source("mp4", VP9, turn="transpose"),
    "mkv-ffv1": Source("mkv", FFV1, "yuv444p"),
    "webm-vp8": Source("webm", VP8),
    "webm-vp9": Source("webm", VP9),
    "webm-vp9-altref": Source("webm", "libvpx-vp9 -crf 10 -b:v 0 -auto-alt-ref 1 -lag-in-frames 8 -cpu-used 8"),
    "avi-mpeg4": Source("avi", f"mpeg4 -bf 2 {QUALITY}"),
    "avi-h264": Source("avi"),
    "avi-mjpeg": Source("avi", f"mjpeg {QUALITY}", "yuvj422p", full=True),
    "avi-huffyuv": Source("avi", "huffyuv", "yuv422p"),
    "ts-h264": Source("ts"),
    "ts-hevc": Source("ts", X265),
    "mpg-mpeg2": Source("mpg", f"mpeg2video -bf 2 -g 6 {QUALITY}", rate="25"),
    "flv-flv1": Source("flv", f"flv {QUALITY}"),
    "flv-h264": Source("flv"),
    "ogg-theora": Source("ogv", "libtheora -q:v 10"),
    "wmv-wmv2": Source("wmv", f"wmv2 {QUALITY}"),
    "mp4-fragments": Source(muxer="-movflags frag_keyframe+empty_moov+default_base_moof"),
    # edit lists
    "edit-start": Source(steps=(copied(before=("-ss", "0.4")),), shown=range(4, 12)),
    "edit-start-hevc": Source("mp4", X265, steps=(copied(before=("-ss", "0.3")),), shown=range(3, 12)),
    "edit-end-mov-mjpeg": Source(
        "mov", f"mjpeg {QUALITY}", "yuvj420p", full=True, steps=(ends_at(0.8),), shown=range(8)
    ),
    "edit-end": Source(steps=(ends_at(0.7),), shown=range(7)),
    "edit-both": Source(steps=(copied(before=("-ss", "0.4")), ends_at(0.5)), shown=range(4, 9)),
    "edit-end-rot90": Source(turn="rot90", steps=(ends_at(0.7),), shown=range(7)),
    "edit-parts": Source(
        encoder="libx264 -qp 8 -bf 0 -g 6", steps=(edited((0.4, 0.2), (0.4, 0.8)),), shown=[*range(2, 6), *range(8, 12)]
    ),
    "edit-parts-swapped": Source(steps=(edited((0.3, 0.6), (0.3, 0.0)),), shown=[6, 7, 8, 0, 1, 2]),
    "edit-parts-mjpeg": Source(
        "mp4",
        f"mjpeg {QUALITY}",
        "yuvj420p",
        full=True,
        steps=(edited((0.3, 0.6), (0.3, 0.0)),),
        shown=[6, 7, 8, 0, 1, 2],
    ),
    "edit-pause-first": Source(steps=(edited((0.5, -1), (0.5, 0.1)),), shown=range(1, 6)),
    "edit-cut-at-end": Source(steps=(copied("-t", "0.75"),), shown=range(10)),
    # clocks
    "variable-mp4": Source(times="N*60+N*N*20"),
    "variable-mkv": Source("mkv", times="N*60+N*N*20"),
    "variable-webm": Source("webm", VP9, times="N*60+N*N*20"),
    "variable-hevc": Source("mp4", X265, times="N*100+120*gt(N,5)"),
    "ntsc-mp4": Source(rate="24000/1001"),
    "ntsc-mkv": Source("mkv", rate="30000/1001"),
    "late-mkv": Source("mkv", muxer="-output_ts_offset 10"),
    "late-ts": Source("ts", muxer="-output_ts_offset 3"),
    "late-webm": Source("webm", VP8, muxer="-output_ts_offset 5"),
    "sound-first-mp4": Source(steps=(with_sound(0.5),)),
    "sound-first-mkv": Source("mkv", steps=(with_sound(0.5),)),
    "sound-first-webm": Source("webm", VP8, steps=(with_sound(0.3),)),
    "joined-ts": Source("ts", num_frames=6, steps=(joined,), shown=[*range(6), *range(6)]),
    "joined-ts-mpeg2": Source(
        "ts", f"mpeg2video -bf 2 -g 6 {QUALITY}", num_frames=6, rate="25", steps=(joined,), shown=[*range(6), *range(6)]
    ),
    "one-frame": Source(num_frames=1),
    "one-frame-mkv": Source("mkv", num_frames=1),
    "slow-mp4": Source(num_frames=4, rate="1"),
    # colours
    "hd-untagged": Source(size=(1280, 720), num_frames=3, matrix="bt709"),
    "hd-untagged-rot90": Source(size=(1280, 720), num_frames=3, matrix="bt709", turn="rot90"),
    "hd-untagged-vp9": Source("webm", VP9, size=(1280, 720), num_frames=2, matrix="bt709"),
    "hd-bt601": Source(size=(1280, 720), num_frames=2, matrix="bt601", tagged=True),
    "sd-bt709": Source(matrix="bt709", tagged=True),
    "sd-bt709-full": Source(matrix="bt709", full=True, tagged=True),
    "sd-bt601-full": Source(full=True, tagged=True),
    "sd-bt2020-10bit": Source("mkv", X264, "yuv420p10le", matrix="bt2020", tagged=True),
    "yuvj": Source(pixels="yuvj420p", full=True),
    "10bit": Source("mkv", X265, "yuv420p10le"),
    "422": Source("mkv", X264, "yuv422p"),
    "444": Source("mp4", X264, "yuv444p"),
    "grey": Source("mkv", FFV1, "gray", full=True),
    "rgb-ffv1": Source("mkv", FFV1, "bgr0"),
    "rgb-ffv1-hd": Source("mkv", FFV1, "bgr0", size=(1280, 720), num_frames=2),
    "rgb-h264": Source("mkv", "libx264rgb -qp 0", "rgb24"),
    "rgb-png-mov": Source("mov", "png", "rgb24"),
    "rgb-raw-avi": Source("avi", "rawvideo", "bgr24"),
    "rgb-qtrle": Source("mov", "qtrle", "rgb24"),
    "alpha-ffv1": Source("mkv", FFV1, "bgra"),
    "alpha-prores": Source("mov", "prores_ks -profile:v 4444", "yuva444p10le"),
    # streams
    "cover-first": Source(steps=(with_cover_first("-disposition:v:0", "0"),)),
    "cover-first-mkv": Source("mkv", steps=(with_cover_first("-disposition:v:0", "0"),)),
    "cover-attached": Source(steps=(with_cover_first("-disposition:v:0", "attached_pic"),)),
    "default-second": Source("mkv", steps=(with_other_stream,)),
    "default-second-mp4": Source(steps=(with_other_stream,)),
    # recordings
    "open-gop-cut": Source(
        "ts", "libx264 -qp 8 -bf 2 -g 6 -x264-params open-gop=1", steps=(without_start(188 * 12),), shown=range(6, 12)
    ),
}
QUICK = (
    "turn-vflip",
    "turn-rot90",
    "turn-transverse",
    "mov-mjpeg-vflip",
    "mp4-mjpeg",
    "webm-vp9",
    "avi-h264",
    "edit-both",
    "edit-end-mov-mjpeg",
    "variable-mp4",
    "sound-first-mp4",
    "joined-ts",
    "hd-untagged-rot90",
    "sd-bt709-full",
    "sd-bt2020-10bit",
    "rgb-ffv1-hd",
    "cover-first",
    "default-second",
    "open-gop-cut",
)
"""One of each kind."""
