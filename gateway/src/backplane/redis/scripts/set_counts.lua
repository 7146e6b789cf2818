-- set_counts.lua: states how many sockets of some addresses a node holds now.
--
-- Why a script: one round trip and one step for a batch; each address is written like admit.lua writes it.
--
-- KEYS  the addresses (hashes: node -> its sockets)
-- ARGV  1 node, then for each key its count; 0 removes
-- Returns 'done'

for _, address in ipairs(KEYS) do
  expect('hash', address, 'ip')
end
for i, address in ipairs(KEYS) do
  local count = ARGV[i + 1]
  if count == '0' then
    redis.call('HDEL', address, ARGV[1])
  else
    redis.call('HSET', address, ARGV[1], count)
    redis.call('EXPIRE', address, ADDRESS_TTL_SECONDS)
  end
end
return 'done'
