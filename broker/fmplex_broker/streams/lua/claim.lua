-- Take jobs for a worker across all flows, in order of virtual time or of arrival.
-- ARGV: worker, epoch, jobs per flow at most, flows visited at most, steal ms, strangers (1: all vFMs, 0: only those that are
-- resident here), order (fair | arrival), number of this claim, "flow entry" lines of what earlier claims brought and is still
-- being prepared, how many flows to avoid, these, then class, room pairs in order of precedence.
-- Returns {state, flows, more, wait}: state ok | lost | stale; flows = {flow, {attempts...}, {entries...}, rest, weight, its
-- targets in ms (latency, first token, next token)}, where
-- rest = 1: the flow has more undelivered entries, 0: it has none now, -1: not looked at;
-- more = 1: there is more to take, claim again rather than sleep; wait > 0: what is resident elsewhere may be had in so many ms.
local me, epoch = ARGV[1], ARGV[2]
local per_flow, visits, now = tonumber(ARGV[3]), tonumber(ARGV[4]), now_ms()
local steal, strangers, by_arrival = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == 'arrival'
local held, here = P .. 'held:' .. me, P .. 'here:' .. me
if lease(me) <= now then return {'lost', {}, 0, 0} end
if redis.call('HGET', held, '#') ~= epoch then return {'stale', {}, 0, 0} end

local room, taken, out, more, wait = {}, {}, {}, 0, 0
local avoided, avoid = {}, tonumber(ARGV[10])
for i = 11, 10 + avoid do avoided[ARGV[i]] = true end
for i = 11 + avoid, #ARGV, 2 do room[ARGV[i]] = tonumber(ARGV[i + 1]) end

-- Where the other live workers say what is resident with them. One worker alone never waits for anybody.
local elsewhere = {}
if steal > 0 and strangers then
  for _, w in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '(' .. string.format('%d', now), '+inf')) do
    if w ~= me then elsewhere[#elsewhere + 1] = P .. 'here:' .. w end
  end
end

local function is_here(vfm) return redis.call('SISMEMBER', here, vfm) == 1 end

-- Age of the oldest undelivered entry of a flow. One from the future is from before the clock was set back: long enough ago.
local function waited(flow)
  local last = last_delivered(flow)
  if not last then return steal end
  local front = entries_after(flow, last, 1)[1]
  if not front then return 0 end
  local at = added(front[1])
  return at <= now and now - at or steal
end

-- True if the flow should be left to a worker that has its vFM: it is resident there and not here, and has not waited long.
local function belongs_elsewhere(class, vfm)
  if #elsewhere == 0 or is_here(vfm) then return false end
  for _, set in ipairs(elsewhere) do
    if redis.call('SISMEMBER', set, vfm) == 1 then
      local left = steal - waited(class .. ':' .. vfm)
      if left <= 0 then return false end
      if wait == 0 or left < wait then wait = left end
      return true
    end
  end
  return false
end

-- What is taken is prepared next: a death until then may be its fault. What a worker has died with before is prepared when its
-- turn comes, and marked then: it must not be blamed while it waits.
local suspects = {}
if ARGV[9] ~= '' then suspects[1] = ARGV[9] end

-- Add what was taken of a flow to the answer.
local function give(flow, attempts, entries, rest, r)
  for i, e in ipairs(entries) do
    if attempts[i] == 1 then suspects[#suspects + 1] = flow .. ' ' .. e[1] end
  end
  local one = {flow, attempts, entries, rest, string.format('%.17g', r.weight)}
  for _, target in ipairs(TARGETS) do one[#one + 1] = string.format('%.17g', r[target] or 0) end
  out[#out + 1] = one
end

local function take_back(class, flow, vfm)
  local want = math.min(room[class], per_flow)
  redis.call('HSET', held, flow, '1')
  local list = pending(flow, '-', '+', want, 'released')
  local ids, count = {}, {}
  for i, p in ipairs(list) do ids[i] = p[1]; count[p[1]] = p[4] + 1 end
  local attempts, entries = {}, {}
  if #ids > 0 then
    -- Entries deleted meanwhile are dropped by XCLAIM itself.
    for _, e in ipairs(redis.call('XCLAIM', queue(flow), 'w', me, 0, unpack(ids))) do
      if e and e[2] then entries[#entries + 1] = e; attempts[#attempts + 1] = count[e[1]] end
    end
  end
  if #list < want then redis.call('ZREM', P .. 'back', flow) else more = 1 end
  room[class], taken[flow] = room[class] - #entries, #entries
  if #entries > 0 then give(flow, attempts, entries, -1, record(vfm) or {weight = 1}) end
end

-- What was given back comes first, oldest gift first. Only classes with room are looked at: else the many flows of one
-- without room would use up the visits of all.
local function take_all_back(class)
  local from, to = back_range(class)
  -- Passing one by costs little, and must not hide what is behind it.
  local looks = (strangers and visits or 16 * visits) + avoid
  for _, flow in ipairs(redis.call('ZRANGEBYSCORE', P .. 'back', from, '(' .. to, 'LIMIT', 0, looks)) do
    if room[class] <= 0 or visits <= 0 then return end
    local _, vfm = flow_parts(flow)
    if not avoided[flow] and (strangers or is_here(vfm)) then
      visits = visits - 1
      take_back(class, flow, vfm)
    end
  end
end

-- Add the listed flows that may be taken; returns how many belong elsewhere.
local function consider(class, list, limit, flows, seen)
  local left_alone = 0
  for i = 1, #list, 2 do
    local vfm, most = list[i], per_flow - (taken[class .. ':' .. list[i]] or 0)
    if seen[vfm] or avoided[class .. ':' .. vfm] or #flows >= limit then  -- nothing to add
    elseif most <= 0 then more = 1
    else
      local r = record(vfm)
      if not r then redis.call('ZREM', P .. 'ready:' .. class, vfm)
      elseif belongs_elsewhere(class, vfm) then left_alone = left_alone + 1
      else
        r.vfm, r.at, r.most = vfm, tonumber(list[i + 1]), most
        flows[#flows + 1] = r
      end
    end
    seen[vfm] = true
  end
  return left_alone
end

-- Ready flows, lowest virtual time first. Those that are resident here are looked for by themselves when the front of the line
-- is not for us: else strangers that nobody may take yet would hide them.
local function candidates(class, limit)
  local ready, flows, seen = P .. 'ready:' .. class, {}, {}
  local left_alone = 1
  if strangers then
    left_alone = consider(class, redis.call('ZRANGE', ready, 0, limit + avoid - 1, 'WITHSCORES'), limit, flows, seen)
  end
  if left_alone > 0 then
    consider(class, redis.call('ZINTER', 2, ready, here, 'WEIGHTS', 1, 0, 'WITHSCORES'), limit, flows, seen)
    table.sort(flows, function(a, b) return a.at < b.at end)
  end
  return flows
end

-- One XREADGROUP for all flows that give the same number. Returns vfm -> entries.
local function read(class, flows, count)
  local got = {}
  local function ask(list)
    local args = {'XREADGROUP', 'GROUP', 'w', me, 'COUNT', count, 'STREAMS'}
    for _, f in ipairs(list) do args[#args + 1] = queue(class .. ':' .. f.vfm) end
    for _ = 1, #list do args[#args + 1] = '>' end
    local answer = redis.pcall(unpack(args))
    if is_foreign(answer) or is_missing(answer) then return false end  -- one flow's broken key is not the others' misfortune
    for _, s in ipairs(answer or {}) do
      got[string.sub(s[1], #(P .. 'q:' .. class .. ':') + 1)] = s[2]
    end
    return true
  end
  if not ask(flows) then
    -- Some group is missing: make it at 0 and read each by itself.
    for _, f in ipairs(flows) do
      ensure_group(class .. ':' .. f.vfm)
      ask({f})
    end
  end
  return got
end

-- A flow read to its end leaves `ready`, also when it had exactly what was asked for: only what is newly ready rings.
local function read_to_the_end(class, f, entries)
  if #entries < f.count then return true end
  return #redis.call('XRANGE', queue(class .. ':' .. f.vfm), '(' .. entries[#entries][1], '+', 'COUNT', 1) == 0
end

local function advance(class, f, entries)
  local units = 0
  for _, e in ipairs(entries) do units = units + entry_units(e) end
  local mean = f.mean
  if #entries > 0 then mean = 0.75 * f.mean + 0.25 * units / #entries end
  local at = f.at + units / f.weight
  set_virtual(class, f.vfm, at, mean)
  if #entries > 0 then redis.call('HSET', VFMS, ':mean:' .. class, string.format('%.6g', mean)) end
  local clock = tonumber(redis.call('HGET', VFMS, ':clock:' .. class) or 0)
  if f.at > clock then redis.call('HSET', VFMS, ':clock:' .. class, string.format('%.17g', f.at)) end
  local ended = read_to_the_end(class, f, entries)
  if ended then redis.call('ZREM', P .. 'ready:' .. class, f.vfm)
  else redis.call('ZADD', P .. 'ready:' .. class, string.format('%.17g', at), f.vfm) end
  return ended and 0 or 1
end

local function take_round(class, flows)
  local by_count, counts, left = {}, {}, room[class]
  for _, f in ipairs(flows) do
    f.count = math.min(f.count, left)
    left = left - f.count
    if f.count > 0 then
      if not by_count[f.count] then by_count[f.count] = {}; counts[#counts + 1] = f.count end
      table.insert(by_count[f.count], f)
      redis.call('HSET', held, class .. ':' .. f.vfm, '1')
    end
  end
  for _, count in ipairs(counts) do
    local got = read(class, by_count[count], count)
    for _, f in ipairs(by_count[count]) do
      local entries, attempts = got[f.vfm] or {}, {}
      for i = 1, #entries do attempts[i] = 1 end
      local rest = advance(class, f, entries)
      room[class] = room[class] - #entries
      taken[class .. ':' .. f.vfm] = (taken[class .. ':' .. f.vfm] or 0) + #entries
      give(class .. ':' .. f.vfm, attempts, entries, rest, f)
    end
  end
end

-- True if there is a ready flow that need not be avoided; one beyond their number cannot be among them.
local function others_ready(class)
  for _, vfm in ipairs(redis.call('ZRANGE', P .. 'ready:' .. class, 0, avoid)) do
    if not avoided[vfm] then return true end
  end
  return false
end

-- Order of arrival is exact while no more flows of a class are ready than are looked at. Of more it is that of the lowest in
-- virtual time: theirs goes on as they are served, so that the others' turn comes.
local looks = LOOKS * visits
for _, class in ipairs(CLASSES) do
  if (room[class] or 0) > 0 then take_all_back(class) end
  while (room[class] or 0) > 0 and visits > 0 do
    local flows = candidates(class, by_arrival and looks or visits)
    if #flows == 0 then break end
    local fill = by_arrival and fill_by_arrival or fill_by_weight
    visits = math.max(visits - fill(class, flows, room[class], visits), 0)
    take_round(class, flows)
  end
  if (room[class] or 0) > 0 and visits <= 0 and others_ready(class) then more = 1 end
end
redis.call('HSET', held, '#claim', ARGV[8], '#new', table.concat(suspects, '\n'))
return {'ok', out, more, wait}
