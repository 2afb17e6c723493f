-- One renewal of a replica's leases: `core::replicas::lease_book` in the store's language. The essay there
-- says why; a test gives both the same renewals and compares their answers.
--
-- KEYS  1 state (hash)  2 members (hash)  3 when each runs out (sorted set)  4 replicas (hash)
-- ARGV  1 the renewal, JSON  2 the time in ms, or empty: the store's own
local a = cjson.decode(ARGV[1])
local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local function read(key, field)
  local raw = redis.call('HGET', key, field)
  return raw and cmsgpack.unpack(raw)
end
local s = read(KEYS[1], 'state')
  or { grace = 0, token = 0, leader = '', lead = 0, gone = 0, sums = {}, reserved = {} }
local levels = read(KEYS[1], 'levels') or {}

-- A silence of half a ttl and a leap of the clock look alike, and so does their cure.
if not s.last or now + 1000 < s.last or now > s.last + a.ttl / 2 then
  s.grace = now + a.ttl
  local each = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
  for i = 1, #each, 2 do
    local record = read(KEYS[2], each[i])
    local bound = now + (record and record.gone and a.remember or a.ttl)
    if tonumber(each[i + 1]) > bound then redis.call('ZADD', KEYS[3], bound, each[i]) end
  end
  s.lead = math.min(s.lead, now + a.lead)
end
s.grace = math.min(s.grace, now + a.ttl)
s.last = now
-- The first replica has drawn the key by which all know identities.
s.key = s.key or a.key

-- A replica whose leases have run out keeps its safe share, and at last nothing.
local function forget(member, record)
  for q, held in pairs(record.held) do
    s.sums[q] = math.max(0, (s.sums[q] or 0) - held)
    if record.gone then s.reserved[q] = math.max(0, (s.reserved[q] or 0) - held) end
  end
  if record.gone then s.gone = s.gone - 1 end
  redis.call('HDEL', KEYS[2], member)
  redis.call('HDEL', KEYS[4], member)
  redis.call('ZREM', KEYS[3], member)
  if s.leader == member then s.leader, s.lead = '', 0 end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 256)) do
  local record = read(KEYS[2], member)
  if not record then
    redis.call('ZREM', KEYS[3], member)
  elseif record.gone then
    forget(member, record)
  else
    record.gone = true
    s.gone = s.gone + 1
    for q, held in pairs(record.held) do
      local safe = record.safe[q] or 0
      s.sums[q] = math.max(0, (s.sums[q] or 0) - held) + safe
      s.reserved[q] = (s.reserved[q] or 0) + safe
      record.held[q] = safe
    end
    redis.call('HSET', KEYS[2], member, cmsgpack.pack(record))
    redis.call('HDEL', KEYS[4], member)
    redis.call('ZADD', KEYS[3], now + a.remember, member)
  end
end

local record = read(KEYS[2], a.member)
if record and a.seq <= record.seq then
  redis.call('HSET', KEYS[1], 'state', cmsgpack.pack(s))
  return cjson.encode({ stale = true })
end
-- The store has forgotten what it acknowledged.
if (record and record.seq or 0) < a.acknowledged then s.grace = now + a.ttl end
if a.leaving then
  if s.leader == a.member then s.leader, s.lead = '', 0 end
elseif s.leader == a.member and s.lead > now then
  s.lead = now + a.lead
elseif s.lead <= now then
  s.token = s.token + 1
  s.leader = a.member
  s.lead = now + a.lead
end
local newcomer = a.acknowledged == 0
if record and record.gone then
  s.gone = s.gone - 1
  for q, held in pairs(record.held) do s.reserved[q] = math.max(0, (s.reserved[q] or 0) - held) end
end
record = record or { held = {}, safe = {}, since = {}, rests = {} }
record.gone = false
local known = redis.call('HLEN', KEYS[2])
if redis.call('HEXISTS', KEYS[2], a.member) == 0 then known = known + 1 end
local replicas = known - s.gone
local function minimum(limit)
  if limit < replicas then return 0 end
  return math.max(1, math.floor(limit / (20 * replicas)))
end

local leases = {}
for q, claim in pairs(a.claims) do
  local cap, used, demand, safe = claim[1], claim[2], claim[3], claim[4]
  -- limit, level (-1: everybody gets what it asks for), slack
  local level = levels[q] or { claim[5], safe, 0 }
  local limit = level[1]
  local hold = math.max(cap, used)
  local held = record.held[q] or 0
  local others = math.max(0, (s.sums[q] or 0) - held)
  local wish
  if level[2] == 0 then
    -- Goes round: one grain for one turn, then a rest while the others have theirs.
    local turn = a.turn
    local since = record.since[q] or 0
    if demand == 0 or limit == 0 or now < (record.rests[q] or 0) then
      wish = 0
    elseif since > 0 and now >= since + turn then
      record.rests[q] = now + turn * (math.ceil(replicas / limit) - 1)
      wish = 0
    else
      wish = 1
    end
  else
    wish = level[2] < 0 and demand or math.min(demand, level[2])
    if not a.leaving then wish = math.max(wish, minimum(limit)) + level[3] end
    wish = math.min(wish, limit)
  end
  if now < s.grace then
    wish = math.min(wish, newcomer and math.max(hold, safe, 1) or hold)
  end
  if others + hold > limit and level[2] ~= 0 then
    local even = math.floor(math.max(0, limit - (s.reserved[q] or 0)) / replicas)
    wish = math.min(wish, math.max(even, minimum(limit)))
  end
  local lease = wish
  if wish > hold then lease = math.max(hold, math.min(wish, math.max(0, limit - others))) end
  if lease == 0 then
    record.since[q] = 0
  elseif (record.since[q] or 0) == 0 then
    record.since[q] = now
  end
  record.held[q] = math.max(lease, hold)
  record.safe[q] = safe
  s.sums[q] = others + record.held[q]
  leases[q] = lease
end
-- What this replica no longer knows of, it no longer holds.
for q, held in pairs(record.held) do
  if not a.claims[q] then
    s.sums[q] = math.max(0, (s.sums[q] or 0) - held)
    record.held[q] = nil
  end
end
record.seq = a.seq
redis.call('HSET', KEYS[2], a.member, cmsgpack.pack(record))
redis.call('ZADD', KEYS[3], now + a.ttl, a.member)
redis.call('HSET', KEYS[4], a.member, a.replica)
redis.call('HSET', KEYS[1], 'state', cmsgpack.pack(s))

local leads = s.leader == a.member
local answer = {
  leases = leases,
  live = replicas,
  silent = s.gone,
  leader = s.leader,
  token = s.token,
  key = s.key,
}
if leads then
  answer.replicas = redis.call('HGETALL', KEYS[4])
  answer.reserved = s.reserved
else
  local table = redis.call('HMGET', KEYS[1], 'stamp', 'table', 'shares')
  answer.shares = table[3] or nil
  if table[1] and table[1] ~= a.stamp then
    answer.stamp, answer.table = table[1], table[2]
  end
end
return cjson.encode(answer)
