"""What the training stages share: a cancel is heard whenever it comes."""

import os
import signal
import time
from types import ModuleType

import pytest

from tasks import train


class CancelError(BaseException):
    pass


def test_a_cancel_while_ray_is_imported_is_not_lost_in_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless_import(name: str) -> ModuleType:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
        except BaseException:
            pass
        return ModuleType(name)

    def cancel(*_: object) -> None:
        raise CancelError

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        monkeypatch.setattr(train, "import_module", careless_import)
        with pytest.raises(CancelError):
            train.ray_trainer()
    finally:
        signal.signal(signal.SIGUSR1, before)
