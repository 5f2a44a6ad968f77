"""One cell trained by several processes: its bits depend on how many shards a batch has, not on how many processes."""
