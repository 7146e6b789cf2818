-- admit.lua: lets sockets of some addresses in, each up to the cap over all live members.
--
-- Why a script: two nodes that each see nine must not both let in a tenth. It writes the node's own true count, not a
-- difference: repeating it changes nothing. Counts of nodes that are no members are removed, so nothing leaks when a
-- node dies. Questions that wait together are asked together; each is answered by itself, so an address whose key
-- holds something else costs the others nothing.
--
-- KEYS  1 nodes (zset)  2 told (hash), then the addresses (hashes: node -> its sockets)
-- ARGV  1 who speaks  2 number of the statement  3 member lease, ms, then for each address: node, held, wanted, cap
-- Returns for each address 'granted' | 'refused' | 'corrupt' | 'gone', and how many of the node's are counted now

local nodes = KEYS[1]

expect('zset', nodes, 'nodes')
expect('hash', KEYS[2], 'told')
refuse_if_late(KEYS[2], ARGV[1], tonumber(ARGV[2]))
settle_members(nodes, tonumber(ARGV[3]))

-- The same few names and numbers stand at most addresses: each is looked at once.
local function once(look)
  local seen = {}
  return function(text)
    if seen[text] == nil then
      seen[text] = look(text) or false
    end
    return seen[text]
  end
end

local is_name = once(is_node)
local lives = once(function(node)
  return is_member(nodes, node)
end)
-- What is no whole number would be refused for ever, as nobody can close half a socket; and 'nan' is a number to Lua.
local count_of = once(function(text)
  return string.find(text, '^%d+$') and tonumber(text)
end)

-- What the other members hold of an address, and what is counted of the node's; nil when the key holds what the
-- contract does not allow. All of it is looked at before anything is removed: a hash of somebody else's holds numbers, too.
local function counts_of(address, node)
  local fields = redis.pcall('HLEN', address)
  if type(fields) ~= 'number' or fields > ADDRESS_NODES_MAX then
    return nil
  end
  local counts = redis.call('HGETALL', address)
  for i = 1, #counts, 2 do
    if not (is_name(counts[i]) and count_of(counts[i + 1])) then
      return nil
    end
  end
  local others, own = 0, 0
  for i = 1, #counts, 2 do
    if counts[i] == node then
      own = count_of(counts[i + 1])
    elseif lives(counts[i]) then
      others = others + count_of(counts[i + 1])
    else
      redis.call('HDEL', address, counts[i])
    end
  end
  return others, own
end

local function admit(address, node, held, wanted, cap)
  if not lives(node) then
    return 'gone', 0
  end
  local others, own = counts_of(address, node)
  if not others then
    return 'corrupt', 0
  end
  -- Inv. CAP
  local fits = math.max(cap - others, 0)
  local counted = wanted
  if wanted > fits then
    -- Who asks for more closes nothing: what it holds stays counted. Were it cut to what fits while somebody else is
    -- over the cap for a moment, sockets would be hidden, and others let in in their place.
    counted = wanted > held and held or math.min(held, fits)
  end
  -- What stands there already is not written: a node that enters again asks about all it has, and as a rule nothing
  -- has changed. But it must not expire while nodes ask about it: every 20 minutes, so half an hour is early enough.
  if counted > 0 and counted ~= own then
    redis.call('HSET', address, node, int(counted))
    redis.call('EXPIRE', address, ADDRESS_TTL_SECONDS)
  elseif counted > 0 and redis.call('TTL', address) < ADDRESS_TTL_SECONDS / 2 then
    redis.call('EXPIRE', address, ADDRESS_TTL_SECONDS)
  elseif counted == 0 and own > 0 then
    redis.call('HDEL', address, node)
  end
  return wanted > fits and 'refused' or 'granted', counted
end

local answers = {}
for i = 3, #KEYS do
  local at = 4 * i - 8
  local answer, counted =
    admit(KEYS[i], ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
  answers[#answers + 1] = answer
  answers[#answers + 1] = int(counted)
end
return answers
