"""Inside a ComfyUI too, most of these tests run on the stand-in of a MODEL: the host must not manage that."""

import pytest

from reelbrush.nodes import host

from ..diffusion.tiny import TinyPatcher


@pytest.fixture(autouse=True)
def stand_ins_stay_where_they_are(monkeypatch):
    load = host.load_model
    monkeypatch.setattr(
        host, "load_model", lambda model: None if isinstance(model, TinyPatcher) else load(model)
    )
