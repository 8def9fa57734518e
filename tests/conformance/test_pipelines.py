"""Each suite of diffusers, for our pipeline and, as a control, for the stock pipeline it stands for, on one world.

A suite is of one version of diffusers, the installed package perhaps of another, and our world is not theirs; so what
counts is that ours passes whatever stock passes. `conftest.py` compares.
"""

import pytest
import torch
from diffusers.utils.source_code_parsing_utils import ReturnNameVisitor

from examples.tiny.models import make_scheduler
from pipelines import student_scheduler
from tests.conformance.suite import load_suite
from tests.pipelines.families import FAMILIES

testing, params, ip_adapter = load_suite()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class World(testing.BasePipelineTesterConfig):
    """What the suites ask of a pipeline's author: components and arguments."""

    required_input_params_in_call_signature = params.TEXT_TO_IMAGE_PARAMS
    batch_input_params = params.TEXT_TO_IMAGE_BATCH_PARAMS
    output_shape = (3, 32, 32)

    def get_dummy_components(self) -> dict:
        """Fresh ones at each call."""
        components = self.family.components() | dict.fromkeys(("image_encoder", "feature_extractor"))
        return components | {"scheduler": student_scheduler(make_scheduler().config, "epsilon")}

    def get_dummy_inputs(self) -> dict:
        """With guidance, as the suites expect."""
        return {
            "prompt": "A painting of a squirrel eating a burger",
            "generator": torch.Generator().manual_seed(0),
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "output_type": "pt",
        }


class WithPrompts(testing.PipelineTesterMixin):
    """The suite on pipelines, told two things that it can't find out of a class outside diffusers."""

    def test_encode_prompt_works_in_isolation(self, monkeypatch):
        """It reads the names of what `encode_prompt` returns from its source, which is the stock class's."""
        read = ReturnNameVisitor.get_ast_tree
        stock = self.family.stock["text"]
        monkeypatch.setattr(ReturnNameVisitor, "get_ast_tree", lambda visitor, cls: read(visitor, stock))
        super().test_encode_prompt_works_in_isolation({"device": DEVICE, "do_classifier_free_guidance": True})


SUITES = {
    "Pipeline": WithPrompts,
    "Memory": testing.MemoryTesterMixin,
    "Lora": testing.LoraTesterMixin,
    "IPAdapter": ip_adapter.IPAdapterTesterMixin,
}


def _collect(layout: str, kind: str, suite: str) -> None:
    family = FAMILIES[layout]
    cls = family.ours if kind == "ours" else family.stock["text"]
    extra = {"add_text_embeds", "add_time_ids"} if layout == "sdxl" else set()
    body = {
        "family": family,
        "pipeline_class": cls,
        "callback_cfg_params": params.TEXT_TO_IMAGE_CALLBACK_CFG_PARAMS | extra,
        "__module__": __name__,
        "pytestmark": [pytest.mark.compared(kind=kind, group=f"{layout} {suite}")],
    }
    if layout == "sdxl" and suite == "Pipeline":  # diffusers leaves it out too: no call does without the tokenizers
        body["test_save_load_optional_components"] = None
    name = f"Test_{layout}_{suite}_{kind}"
    globals()[name] = type(name, (World, SUITES[suite]), body)


for _layout in FAMILIES:
    for _suite in SUITES:
        for _kind in ("stock", "ours"):
            _collect(_layout, _kind, _suite)
