-- What the server does when it is full.
return redis.call('INFO', 'memory')
