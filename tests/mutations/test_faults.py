"""The list of deliberate faults stays true: what each of them changes is there, once, and so are its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_what_a_fault_changes_is_there_once(fault: Fault) -> None:
    text = (ROOT / "src" / "flowcut" / fault.file).read_text()
    assert text.count(fault.old) == 1
    compile(text.replace(fault.old, fault.new), fault.file, "exec")
    assert fault.new != fault.old and (ROOT / fault.tests[0]).is_file()


def test_faults_lie_all_over_the_package() -> None:
    folders = {str(Path(fault.file).parent) for fault in FAULTS}
    assert len(FAULTS) >= 30 and folders >= {"algorithm", "methods", "trace", "stages/tower", "stages/sequence"}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
