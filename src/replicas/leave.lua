-- A replica leaves in good order: nothing is kept for it.
-- KEYS as in renew.lua   ARGV 1 member
local raw = redis.call('HGET', KEYS[1], 'state')
local s = raw and cmsgpack.unpack(raw)
local kept = redis.call('HGET', KEYS[2], ARGV[1])
if not s or not kept then return 0 end
local record = cmsgpack.unpack(kept)
for q, held in pairs(record.held) do
  s.sums[q] = math.max(0, (s.sums[q] or 0) - held)
  if record.gone then s.reserved[q] = math.max(0, (s.reserved[q] or 0) - held) end
end
if record.gone then s.gone = s.gone - 1 end
if s.leader == ARGV[1] then s.leader, s.lead = '', 0 end
redis.call('HSET', KEYS[1], 'state', cmsgpack.pack(s))
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
