-- salts.lua: the visitor salts of today and yesterday, made if they do not exist.
--
-- Why a script: which day it is must be decided by the clock that touches are judged by. The node cannot know the
-- day beforehand but must name the keys, so it guesses, and guesses again when told better.
--
-- A salt is stored with its fingerprint, as "<hex>:<fingerprint>": touches name the fingerprint, and Lua here could
-- not compute it.
--
-- KEYS  1 today's salt (string)  2 yesterday's (string)
-- ARGV  1 the day that is meant by today  2, 3 salts to be stored if there are none: what the node still held, or
--       random
-- Returns {'salts', today's, yesterday's, now} | {'turned', day}

if tonumber(ARGV[1]) ~= today() then
  return { 'turned', int(today()) }
end
expect('string', KEYS[1], 'salt')
expect('string', KEYS[2], 'salt')
redis.call('SET', KEYS[1], ARGV[2], 'NX', 'EX', SALT_TTL_SECONDS)
redis.call('SET', KEYS[2], ARGV[3], 'NX', 'EX', SALT_TTL_SECONDS)
return { 'salts', redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]), int(now) }
