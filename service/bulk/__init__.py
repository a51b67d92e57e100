"""Bulk prediction: files of millions of sequences, computed on a Ray cluster.

In: a file of any format of training, or nested Parquet, on disk or in an object store.
Out: a folder of JSON lines, a file for each shard. An interrupted job continues where it stopped.
"""
