# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""Where the patched lines must stand in the syntax trees of upstream's files, for `python -m patches check`.

A patch can apply and still hook into the wrong place after upstream has moved its code; these rows tell.
"""

FIRST, LAST, ANY = "<first>", "<last>", None
IMPORT = "from ultralytics.nn.Addmodules import *"
LAYERS = "c2, args, n = parse_layer(m, i, c2, args, width, max_channels, n)"
START = "declared_start(self)"
STRIDES = "declared_strides(self, s)"
DECAY = "from ultralytics.nn.Addmodules.hooks.optimizer import without_ssm_decay"
CALLBACKS = "self.callbacks = _callbacks or callbacks.get_default_callbacks()"
REFUSALS = "from ultralytics.nn.Addmodules.hooks.exporter import with_refusals"
INTEGRATIONS = "callbacks.add_integration_callbacks(self)"
REFUSING = "with_refusals(Exporter)"
LINE = "from ultralytics.nn.Addmodules.tools.checks import checks_line"
SHOWN = "LOGGER.info(checks_line())"
# file, innermost definition, statement before (after a docstring: FIRST), the hook, statement after it
HOOKS = (
    ("ultralytics/nn/tasks.py", "", ANY, IMPORT, ANY),
    ("ultralytics/nn/tasks.py", "parse_model", "c2 = ch[f]", LAYERS, LAST),
    ("ultralytics/nn/tasks.py", "DetectionModel.__init__", "s = 256", START, STRIDES),
    ("ultralytics/nn/tasks.py", "DetectionModel.__init__", START, STRIDES, "m.inplace = self.inplace"),
    ("ultralytics/nn/tasks.py", "yaml_model_load", ANY, "@own_scales", ANY),
    ("ultralytics/engine/trainer.py", "", ANY, DECAY, "ClassDef"),
    ("ultralytics/engine/trainer.py", "BaseTrainer", ANY, "@without_ssm_decay", ANY),
    ("ultralytics/engine/exporter.py", "Exporter.__init__", CALLBACKS, REFUSALS, REFUSING),
    ("ultralytics/engine/exporter.py", "Exporter.__init__", REFUSALS, REFUSING, INTEGRATIONS),
    ("ultralytics/utils/checks.py", "check_pip_update_available", ANY, "@lambda check: lambda: False", ANY),
    ("ultralytics/utils/checks.py", "check_yolo", FIRST, LINE, SHOWN),
    ("ultralytics/utils/checks.py", "check_yolo", LINE, SHOWN, ANY),
)
