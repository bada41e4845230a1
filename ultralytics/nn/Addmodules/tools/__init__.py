# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What people run: the command `vmamba` (cli.py), one tool a file. The layers import nothing of it."""
