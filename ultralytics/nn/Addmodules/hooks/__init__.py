# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What upstream calls of this fork, one job a file. The patches insert the calls; `register.py` needs no patch."""
