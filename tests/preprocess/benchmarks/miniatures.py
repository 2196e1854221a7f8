"""Miniatures of the four sets: annotation files in the published schema, written without any code of the converter.

Field by field as the published files have them, with entries that a converter must notice: repeated sentences, a
broken clip, stray bytes, a video without a file, a file that is no video.
"""

import json
from pathlib import Path

import av
import numpy as np

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


def write_video(path: Path, colour: str, *, num_frames: int = 12, fps: int = 6) -> None:
    """A small video of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((48, 64, 3), COLOURS[colour], dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_msrvtt(folder: Path, *, captions_per_video: int = 20, repeat_sentence: bool = True) -> None:
    """6 training videos with 20 captions, 4 test videos with one sentence; two test sentences are the same."""
    videos = folder / "videos"
    colours = list(COLOURS)
    train, test = [f"video{i}" for i in range(6)], [f"video{7000 + i}" for i in range(4)]
    entries, sentences = [], []
    for number, name in enumerate([*train, *test]):
        colour = colours[number % 4]
        write_video(videos / f"{name}.mp4", colour)
        entries.append(
            {
                "category": 9,
                "url": f"https://www.youtube.com/watch?v=x{number}",
                "video_id": name,
                "start time": 137.72,
                "end time": 149.44,
                "split": "train" if name in train else "test",
                "id": number,
            }
        )
        for caption in range(captions_per_video):
            text = f"a {colour} screen seen for the {caption}th time in video {number}"
            sentences.append({"caption": text, "video_id": name, "sen_id": len(sentences)})
    data = {"info": {"year": "2016"}, "videos": entries, "sentences": sentences}
    (folder / "MSRVTT_data.json").write_text(json.dumps(data))
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\n" + "".join(f"{name}\n" for name in train))
    rows = ["key,vid_key,video_id,sentence"]
    for number, name in enumerate(test):
        sentence = "a screen, all in one colour" if repeat_sentence and number < 2 else f"screen number {number}"
        rows.append(f'ret{number},msr{7000 + number},{name},"{sentence}"')
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(rows) + "\n")


def write_didemo(folder: Path) -> None:
    """3 + 1 + 2 videos of 40 s with several descriptions; files are .mp4, the lists say .avi, .mov and .m4v."""
    names = {
        "train": ["12@N01_1_a.avi", "12@N01_2_b.mov", "34@N00_3_c.m4v"],
        "val": ["56@N02_4_d.avi"],
        "test": ["78@N03_5_e.avi", "78@N03_6_f.3gp"],
    }
    for split, files in names.items():
        rows = []
        for number, file in enumerate(files):
            # 40 seconds at 2 frames a second: the last 10 must not be seen.
            write_video(folder / "videos" / f"{file.rsplit('.', 1)[0]}.mp4", "blue", num_frames=80, fps=2)
            for part in range(3):
                rows.append(
                    {
                        "annotation_id": len(rows),
                        "description": f"part {part} of {split} {number}\n",
                        "dl_link": "https://www.flickr.com/video_download.gne?id=1",
                        "num_segments": 6,
                        "times": [[part, part], [part, part + 1], [part, part], [part, part]],
                        "video": file,
                    }
                )
        (folder / f"{split}_data.json").write_text(json.dumps(rows))
        (folder / f"{split}_list.txt").write_text("\n".join(files) + "\n")


def write_lsmdc(folder: Path) -> None:
    """5 + 2 + 3 clips of two films; a known broken clip, a stray byte, a lone quote, a clip without a file."""
    files = {
        "LSMDC16_annos_training.csv": [
            ("1004_Juno_00.00.32.801-00.00.37.522", "SOMEONE picks up a phone."),
            ("1004_Juno_00.00.42.801-00.00.47.522", 'She says "no and leaves.'),
            ("1012_Unbreakable_00.05.16.065-00.05.21.941", "A clip that cannot be decoded."),
            ("1012_Unbreakable_00.06.16.065-00.06.21.941", "He opens a caf\xe9 door."),
            ("1012_Unbreakable_00.07.16.065-00.07.21.941", "A clip without a file."),
        ],
        "LSMDC16_annos_val.csv": [
            ("2001_Up_00.00.01.000-00.00.03.000", "Balloons rise."),
            ("2001_Up_00.00.05.000-00.00.07.000", "A house flies."),
        ],
        "LSMDC16_challenge_1000_publictect.csv": [
            ("3001_Ran_00.00.01.000-00.00.03.000", "Riders wait."),
            ("3001_Ran_00.00.05.000-00.00.07.000", "SOMEONE picks up a phone."),
            ("3001_Ran_00.00.09.000-00.00.11.000", "The castle burns."),
        ],
    }
    for file, rows in files.items():
        lines = [f"{clip}\t00.00.00.000\t00.00.05.000\t00.00.00.000\t00.00.05.000\t{text}" for clip, text in rows]
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes("\r\n".join([*lines, ""]).encode("cp1252"))
        for number, (clip, text) in enumerate(rows):
            if "without a file" not in text:
                movie = clip[: clip.rindex("_")]
                write_video(folder / "videos" / movie / f"{clip}.avi", list(COLOURS)[number % 4])


def write_activitynet(folder: Path) -> None:
    """3 training videos, 3 of val_1, paragraphs of two sentences; one file is no video, one id has no text."""
    for name, ids in {"train": ["v_aaa", "v_-bb", "v_c_c"], "val_1": ["v_ddd", "v_eee", "v_fff"]}.items():
        data = {
            one: {
                "duration": 82.73,
                "timestamps": [[0.83, 19.86], [17.37, 60.81]],
                "sentences": [f"First of {one}.", f"  Then the end of {one}."],
            }
            for one in ids
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(data))
        for number, one in enumerate(ids):
            suffix = (".mp4", ".mkv", ".mp4")[number]
            write_video(folder / "videos" / f"{one}{suffix}", list(COLOURS)[number])
    (folder / "train_ids.json").write_text(json.dumps(["v_aaa", "v_-bb", "v_c_c", "v_gone"]))
    (folder / "val_ids.json").write_text(json.dumps(["v_ddd", "v_eee", "v_fff"]))
    (folder / "videos" / "v_fff.mp4").write_bytes(b"this is no video")
