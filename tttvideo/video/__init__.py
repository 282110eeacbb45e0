"""Videos in: decoding, lists and folders, sampling, augmentation, data sets, synthetic suites. Imports
nothing by itself.
"""
