# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The project's own studies: trainings of many models on small real sets, by `vmamba compare`.

parts.py      what is compared: models, data sets, seeds, settings
variants.py   our models with one thing changed
controls.py   a block of convolutions instead of scans, for grafts
starts.py     the files that a training starts from
__main__.py   run them: `python -m benchmarks.study`
runs.py       what came out: results/study.csv
tables.py     the tables of docs/study.md
figure.py     its picture
"""
