-- A load for wrk: messages to /api/v1/emails or /api/v1/emails/batch, each to a recipient of its own.
-- Arguments: messages a call (0: /emails), run, API key, bytes of the body. Prints one line of JSON at the end.
local threads = {}

function setup(thread)
  thread:set("first", #threads * 1000000000)
  table.insert(threads, thread)
end

function init(args)
  per_call, run, size = tonumber(args[1]), args[2], tonumber(args[4])
  headers = {["Authorization"] = "Bearer " .. args[3], ["Content-Type"] = "application/json"}
  tail = '@sink.example","subject":"hello","text":"' .. string.rep(string.rep("x", 70) .. "\\n", math.ceil(size / 71)) .. '"}'
  head = '{"from":"bench@plain.example","to":"'
  number, good, bad = first, 0, 0
end

local function email()
  number = number + 1
  return head .. string.format("%d", number) .. run .. tail
end

function request()
  if per_call == 0 then
    return wrk.format("POST", "/api/v1/emails", headers, email())
  end
  local emails = {}
  for n = 1, per_call do emails[n] = email() end
  return wrk.format("POST", "/api/v1/emails/batch", headers, '{"emails":[' .. table.concat(emails, ",") .. "]}")
end

function response(status, _, body)
  if status == 202 and (per_call == 0 or string.find(body, '"refused":0,', 1, true)) then
    good = good + 1
  else
    bad = bad + 1
    if bad == 1 then io.stderr:write(status, " ", string.sub(body, 1, 300), "\n") end
  end
end

function done(summary, latency, requests)
  local good, bad = 0, 0
  for _, thread in ipairs(threads) do good, bad = good + thread:get("good"), bad + thread:get("bad") end
  local errors = summary.errors
  io.write(string.format(
    '{"seconds":%f,"good":%d,"bad":%d,"broken":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.duration / 1e6, good, bad, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
