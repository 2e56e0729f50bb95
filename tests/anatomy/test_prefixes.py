import pytest

from wsurgery.anatomy.prefixes import common_prefix


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.a", "module.b.c"], "module."),
        (["_orig_mod.module.a", "_orig_mod.module.b"], "_orig_mod.module."),
        (["model.fc.weight", "model.fc.bias"], "model."),
        (["module.a", "b"], ""),
        (["model.fc.weight", "criterion.weight"], ""),
        (["module."], ""),
        (["model.model.a"], "model.model."),
        (["model.backbone.a", "model.backbone.b"], "model.backbone."),
        (["backbone.a", "head.b"], ""),
        ([], ""),
    ],
)
def test_only_a_prefix_of_all_names_is_stripped(names, prefix):
    assert common_prefix(names) == prefix
