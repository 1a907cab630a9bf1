"""Where a trial's checkpoints lie: across the sessions that ran it, none of another trial's."""

from pathlib import Path

from gpm_tune.study.storage.trial_checkpoints import newest_first, trial_folder


def test_the_latest_comes_first_then_what_is_older_of_every_session(tmp_path: Path) -> None:
    def folder(session: int, trial: int, number: int) -> Path:
        return tmp_path / f"session_{session:03d}" / f"trial_{trial:04d}" / f"checkpoint_{number:06d}"

    for place in [(0, 7, 3), (0, 7, 4), (1, 7, 0), (1, 7, 1), (1, 7, 2), (1, 8, 0), (2, 7, 0)]:
        folder(*place).mkdir(parents=True)
    found = newest_first(str(folder(1, 7, 1)))
    assert found == [str(folder(*place)) for place in [(1, 7, 1), (1, 7, 0), (0, 7, 4), (0, 7, 3)]]


def test_a_latest_one_that_is_gone_is_named_still(tmp_path: Path) -> None:
    gone = str(tmp_path / "session_000" / "trial_0000" / "checkpoint_000000")
    assert newest_first(gone) == [gone]


def test_attempts_after_a_lost_process_come_in_order(tmp_path: Path) -> None:
    names = [trial_folder(7, attempt) for attempt in (0, 1, 2, 10)]
    folders = [tmp_path / "session_000" / name / "checkpoint_000000" for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    assert newest_first(str(folders[-1])) == [str(folder) for folder in folders[::-1]]
