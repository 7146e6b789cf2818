-- publish.lua: appends messages to the stream, at most once per node and number.
--
-- Why a script: a producer's request whose answer was lost is sent again, and must not be done again; the check, the
-- append and the note of it have to be one step. The share of a theme is counted in the same step, so that two nodes
-- never publish the same count. With a lease it moves messages of the legacy channel, which every node could hear,
-- by exactly one.
--
-- KEYS  1 published (hash)  2 events (stream)  3 themes (hash)  4 ticker (string)  5 visitors (zset)
--       6 touched (hash)  7 salt of the touch's day (string)
-- ARGV  1 node  2 number  3, 4 node and epoch of the lease, or '' and ''  5 traceparent or ''
--       6 number of items; then three for each:
--         'whole' type data | 'stamped' type data-without-its-end | 'theme' type theme
--       then 'touch' day fingerprint round_of-or-'' (visitor, alias-or-'')*, or nothing
-- Returns {'done', 'done' | 'refused' (the touch), id1, type1, data1, id2, ...}
--       | {'fenced'} | {'superseded'}; type and data are '' where a repeat finds the entry trimmed away

local published, events, themes, ticker, visitors, touched, salt = unpack(KEYS)
local node, number = ARGV[1], tonumber(ARGV[2])
local traceparent, items = ARGV[5], tonumber(ARGV[6])
local after_items = 7 + 3 * items

expect('hash', published, 'published')
expect('stream', events, 'events')
expect('hash', themes, 'themes')
expect('zset', visitors, 'visitors')
expect('hash', touched, 'touched')
expect('string', salt, 'salt')

local function touch_if_asked()
  if ARGV[after_items] ~= 'touch' then
    return 'done'
  end
  local day, fingerprint, round_of = ARGV[after_items + 1], ARGV[after_items + 2], ARGV[after_items + 3]
  return touch(visitors, touched, salt, day, fingerprint, round_of, after_items + 4)
end

-- What was done under this number: its ids, and what still stands there.
local function recall(ids)
  local reply = { 'done', touch_if_asked() }
  for id in string.gmatch(ids, '%S+') do
    local kind, data = '', ''
    local entry = redis.call('XRANGE', events, id, id)[1]
    if entry then
      for i = 1, #entry[2], 2 do
        if entry[2][i] == 'type' then kind = entry[2][i + 1] end
        if entry[2][i] == 'data' then data = entry[2][i + 1] end
      end
    end
    reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = id, kind, data
  end
  return reply
end

-- A note is "number ms ids": what was done last, and when.
local function read_note(text)
  local last, at, ids = string.match(text .. ' ', '^(%d+) (%d+) (.*)$')
  return last, tonumber(at), ids
end

local noted = redis.call('HGET', published, node)
if noted then
  local last, _, ids = read_note(noted)
  if not last then
    corrupt('published')
  end
  if tonumber(last) > number then
    return { 'superseded' }
  end
  if tonumber(last) == number then
    return recall(ids)
  end
end

-- Inv. FENCE
if ARGV[3] ~= '' and not holds_lease(read_ticker(ticker), ARGV[3], ARGV[4]) then
  return { 'fenced' }
end

-- Counts of themes, read once and before the first write.
local counts, named, views = nil, 0, 0
local function read_themes()
  counts = {}
  local flat = redis.call('HGETALL', themes)
  for i = 1, #flat, 2 do
    -- What HINCRBY adds to, whatever else Lua takes for a number; and exact in Lua's numbers.
    local digits = string.match(flat[i + 1], '^[1-9]%d*$') or string.match(flat[i + 1], '^0$')
    if not digits or #digits > THEME_COUNT_DIGITS_MAX then
      corrupt('themes')
    end
    local count = tonumber(digits)
    counts[flat[i]] = count
    views = views + count
    if flat[i] ~= OTHER_THEME then
      named = named + 1
    end
  end
end

-- The share in tenths of a percent, computed in whole numbers and rounded half up.
local function theme_stats(theme)
  if not counts[theme] and theme ~= OTHER_THEME then
    if named >= THEMES_MAX then
      theme = OTHER_THEME
    else
      named = named + 1
    end
  end
  local count = redis.call('HINCRBY', themes, theme, 1)
  counts[theme] = count
  views = views + 1
  local tenths = math.floor((2000 * count + views) / (2 * views))
  return string.format('{"theme":"%s","count":%s,"percentage":%.1f}', theme, int(count), tenths / 10)
end

for i = 7, after_items - 1, 3 do
  if ARGV[i] == 'theme' and not counts then
    read_themes()
  end
end

local reply, ids = { 'done', '' }, { int(number), int(now) }
for i = 7, after_items - 1, 3 do
  local how, kind, text = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local data = text
  if how == 'stamped' then
    data = text .. '"timestamp":"' .. rfc3339(now) .. '"}'
  elseif how == 'theme' then
    data = theme_stats(text)
  end
  local id
  if traceparent == '' then
    id = append(events, kind, data)
  else
    id = append(events, kind, data, 'traceparent', traceparent)
  end
  ids[#ids + 1] = id
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = id, kind, data
end
redis.call('HSET', published, node, table.concat(ids, ' '))

-- Nodes come and go. A note stays for as long as an earlier call of its node may still be under way, be the node gone
-- or not. Notes can be long, so a few are looked at each time: more than can come.
if redis.call('HLEN', published) > PUBLISHED_FIELDS_MAX then
  local some = redis.call('HRANDFIELD', published, PUBLISHED_LOOKS_MAX, 'WITHVALUES')
  for i = 1, #some, 2 do
    local _, at = read_note(some[i + 1])
    if at and at < now - TOLD_KEPT_MS then
      redis.call('HDEL', published, some[i])
    end
  end
end

reply[2] = touch_if_asked()
return reply
