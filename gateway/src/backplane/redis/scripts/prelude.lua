-- prelude.lua: what more than one script needs. scripts.rs puts it, and before it the constants that it shares with
-- Rust (in capitals), in front of each script; it is no script by itself.
--
-- Time is this server's and read once, so that all a script decides and writes belongs to one instant. Numbers that
-- are written go through int(): Lua's own conversion turns large ones into 1.7e+12.
--
-- A script looks at every type it depends on before its first write: Redis does not undo what a failed script wrote.
-- The counts of an address are their own affair: where something else stands there, the script goes on without it.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function int(number)
  return string.format('%.0f', number)
end

-- Ends the script: the named key holds what the contract does not allow. Nothing is deleted or repaired.
local function corrupt(name)
  error({ err = 'CORRUPT ' .. name })
end

local function expect(kind, key, name)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then
    corrupt(name)
  end
end

-- RFC 3339, UTC, whole seconds. The sandbox has no os.date; this is the civil calendar counted in 400-year eras that
-- begin on 1 March, so that the leap day is the last of its year.
local function rfc3339(unix_ms)
  local seconds = math.floor(unix_ms / 1000)
  local days = math.floor(seconds / 86400) + 719468
  local era = math.floor(days / 146097)
  local day_of_era = days % 146097
  local year_of_era = math.floor(
    (day_of_era - math.floor(day_of_era / 1460) + math.floor(day_of_era / 36524) - math.floor(day_of_era / 146096))
      / 365
  )
  local day_of_year =
    day_of_era - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local shifted_month = math.floor((5 * day_of_year + 2) / 153)
  local day = day_of_year - math.floor((153 * shifted_month + 2) / 5) + 1
  local month = shifted_month < 10 and shifted_month + 3 or shifted_month - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  local time = seconds % 86400
  return string.format(
    '%04d-%02d-%02dT%02d:%02d:%02dZ',
    year, month, day, math.floor(time / 3600), math.floor(time / 60) % 60, time % 60
  )
end

-- Members: node -> end of its lease. To be called before anybody is declared dead.
--
-- If no lease lies in the future, it was Redis that was away, not every node at once: each gets one lease from now
-- to be heard again. A lease further ahead than any can be was given before the clock jumped back: cut.
--
-- Inv. CAP: who is taken for dead once stays it. Were he only passed over, others could be let in in the place of his
-- sockets, and he be given a lease with all the others later, without learning that he was away.
local function settle_members(nodes, lease)
  if redis.call('ZCOUNT', nodes, '(' .. int(now), '+inf') == 0 then
    for _, node in ipairs(redis.call('ZRANGE', nodes, 0, -1)) do
      redis.call('ZADD', nodes, int(now + lease), node)
    end
  else
    redis.call('ZREMRANGEBYSCORE', nodes, '-inf', int(now))
    local latest = now + math.max(lease, MEMBER_LEASE_MS_MAX)
    for _, node in ipairs(redis.call('ZRANGEBYSCORE', nodes, '(' .. int(latest), '+inf')) do
      redis.call('ZADD', nodes, int(now + lease), node)
    end
  end
end

-- How nodes name themselves; a field of an address that is named otherwise was not written by one.
local function is_node(name)
  return #name == 16 and not string.find(name, '[^0-9a-f]')
end

local function is_member(nodes, node)
  local lease_end = redis.call('ZSCORE', nodes, node)
  return lease_end and tonumber(lease_end) > now
end

-- Inv. CAP: what a process said of its sockets or its membership before it gave up waiting (on a connection that is gone
-- by now, say) is not to overwrite what it said since. Told is a hash: who speaks -> "number ms", the newest statement
-- (or beat: those are numbered apart) and when it came.
-- To be called before the first write of the script, when all types are looked at. Ends the script: nobody waits for
-- what comes late.
local function refuse_if_late(told, speaker, number)
  local text = redis.call('HGET', told, speaker)
  local newest = text and tonumber(string.match(text, '^(%d+) %d+$'))
  if text and not newest then
    corrupt('told')
  end
  if newest and number < newest then
    error({ err = 'LATE' })
  end
  redis.call('HSET', told, speaker, int(number) .. ' ' .. int(now))
end

-- The ticker's lease: "epoch node expiry_ms". The key has no TTL: its epoch must outlive every holder.
local function read_ticker(key)
  local text = redis.call('GET', key)
  if not text then
    return { epoch = 0, node = '', expiry = 0 }
  end
  local epoch, node, expiry = string.match(text, '^(%d+) (%x+) (%d+)$')
  if not epoch then
    corrupt('ticker')
  end
  return { epoch = tonumber(epoch), node = node, expiry = tonumber(expiry) }
end

local function write_ticker(key, ticker)
  redis.call('SET', key, int(ticker.epoch) .. ' ' .. ticker.node .. ' ' .. int(ticker.expiry))
end

-- Inv. FENCE: the lease counts as it stands here, whatever its holder believes.
local function holds_lease(ticker, node, epoch)
  return ticker.node == node and int(ticker.epoch) == epoch and ticker.expiry > now
end

-- The last snapshot: what nodes read at start, and what the next tick continues from. nil when there is none.
local function read_snapshot(key)
  local text = redis.call('GET', key)
  if not text then
    return nil
  end
  local ok, snapshot = pcall(cjson.decode, text)
  if not ok or type(snapshot) ~= 'table' then
    corrupt('snapshot')
  end
  for _, field in ipairs({ 'slot', 'epoch', 'at', 'hole', 'since' }) do
    if type(snapshot[field]) ~= 'number' then
      corrupt('snapshot')
    end
  end
  return snapshot
end

-- Appends to the stream and trims it, to whole nodes of its tree (`~`): exact trimming would cost on each entry.
local function append(events, kind, data, ...)
  return redis.call('XADD', events, 'MAXLEN', '~', STREAM_ENTRIES_MAX, '*', 'type', kind, 'data', data, ...)
end

local function today()
  return math.floor(now / 86400000)
end

-- Marks visitors as seen now, unless the day or the salt under which they were hashed is not the present one.
-- Visitors are ARGV[first], ARGV[first + 2], ...; after each stands its alias under yesterday's salt, or ''.
-- round_of names a node that has with this refreshed all its sockets' visitors, or is ''.
-- Whoever calls this has checked the types of the three keys.
local function touch(visitors, touched, salt, day, fingerprint, round_of, first)
  local stored = redis.call('GET', salt)
  if tonumber(day) ~= today() or not stored or string.match(stored, ':(%x+)$') ~= fingerprint then
    return 'refused'
  end
  local seen, aliases = {}, {}
  for i = first, #ARGV, 2 do
    seen[#seen + 1] = int(now)
    seen[#seen + 1] = ARGV[i]
    if ARGV[i + 1] ~= '' then
      aliases[#aliases + 1] = ARGV[i + 1]
    end
  end
  if #seen > 0 then
    redis.call('ZADD', visitors, unpack(seen))
  end
  if #aliases > 0 then
    redis.call('ZREM', visitors, unpack(aliases))
  end
  if round_of ~= '' then
    redis.call('HSET', touched, round_of, int(now))
  end
  return 'done'
end

