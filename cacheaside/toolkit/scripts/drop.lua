-- Delete a key, whatever it holds.
return redis.call('UNLINK', KEYS[1])
