# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Where the patched lines must stand in the syntax trees of upstream's files, for `python -m patches check`.

A patch can apply and still hook into the wrong place after upstream has moved its code; these rows tell.
"""

FIRST, LAST, ANY = "<first>", "<last>", None
IMPORT = "from ultralytics.nn.Addmodules import *"
LAYERS = "c2, args = parse_layer(m, i, c2, args, width, max_channels)"
GROUPS = "from ultralytics.nn.Addmodules import exempt_ssm_parameters"
EXEMPT = "exempt_ssm_parameters(optimizer, model)"
SCALES = "yaml_model_load = own_scales(yaml_model_load)"
# file, innermost definition, statement before (after a docstring: FIRST), the hook, statement after it
HOOKS = (
    ("ultralytics/nn/tasks.py", "", ANY, IMPORT, SCALES),
    ("ultralytics/nn/tasks.py", "", IMPORT, SCALES, LAST),
    ("ultralytics/nn/tasks.py", "parse_model", "c2 = ch[f]", LAYERS, LAST),
    ("ultralytics/nn/tasks.py", "DetectionModel.__init__._forward", ANY, "@declared_strides(self, s)", ANY),
    ("ultralytics/engine/trainer.py", "BaseTrainer.build_optimizer", ANY, GROUPS, EXEMPT),
    ("ultralytics/engine/trainer.py", "BaseTrainer.build_optimizer", GROUPS, EXEMPT, "return optimizer"),
    ("ultralytics/utils/checks.py", "check_pip_update_available", FIRST, "return False", ANY),
)
