-- touch.lua: marks visitors as seen now.
--
-- Why a script: visitors that were hashed under a salt which has turned must not be counted beside themselves; so
-- the salt is compared in the step that marks them.
--
-- KEYS  1 visitors (zset)  2 touched (hash)  3 salt of the day (string)
-- ARGV  1 day  2 fingerprint of its salt  3 round_of or ''  then (visitor, alias-or-'')*
-- Returns 'done' | 'refused'

expect('zset', KEYS[1], 'visitors')
expect('hash', KEYS[2], 'touched')
expect('string', KEYS[3], 'salt')
return touch(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], 4)
