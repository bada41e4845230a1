# Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
"""`vmamba dataset`: what a training would read of a data set, what is wrong with it, and a picture of its labels.

Nothing in the data set is changed. (A training repairs broken JPEG files and keeps a cache of labels beside them.)
"""
