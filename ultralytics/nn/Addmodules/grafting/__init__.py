# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What is done to a model as a whole: reading its file, where its levels are, rows put into it, and grafts."""
