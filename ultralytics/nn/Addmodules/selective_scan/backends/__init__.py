# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""What computes a scan, one backend a file; registry.py chooses among them."""
