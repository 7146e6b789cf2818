-- leave.lua: ends a node's membership; what it held of any address no longer counts.
--
-- Why a script: it may stand in a cluster's one slot beside the others, and takes one round trip. What other scripts
-- keep of a node that is no member they remove by themselves; its notes here are removed at once.
--
-- KEYS  1 nodes (zset)  2 touched (hash)  3 published (hash)
-- ARGV  1 node
-- Returns 'left'

expect('zset', KEYS[1], 'nodes')
expect('hash', KEYS[2], 'touched')
expect('hash', KEYS[3], 'published')
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 'left'
