"""Many pictures: jobs from a file, made in full batches on all devices of a machine and by any
number of machines, each exactly once.
"""
