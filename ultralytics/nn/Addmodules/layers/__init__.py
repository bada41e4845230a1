# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""The layers with scans, one kind a file; `VMamba.py` beside this folder has the recipe's own two."""
