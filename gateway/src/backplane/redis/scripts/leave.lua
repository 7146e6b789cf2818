-- leave.lua: ends a node's membership; what it held of any address no longer counts.
--
-- Why a script: two keys in one step, each looked at before one is written. The node's counts of addresses stay
-- where they are: counts of who is no member do not count, and whoever meets them removes them. What the node published
-- last stays noted as well: what it sent before may still be under way, and would be done again.
--
-- KEYS  1 nodes (zset)  2 touched (hash)
-- ARGV  1 node
-- Returns 'left'

expect('zset', KEYS[1], 'nodes')
expect('hash', KEYS[2], 'touched')
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 'left'
