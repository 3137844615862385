-- Pictures in turn, each with a number in a comment of its own, so that no server has seen it before;
-- the figures as a line of JSON.
wrk.method = "POST"
wrk.headers["Content-Type"] = "image/jpeg"

local pictures, sent = {}, 0

function init()
  for name in os.getenv("LOAD_IMAGES"):gmatch("[^:]+") do
    local file = assert(io.open(name, "rb"))
    pictures[#pictures + 1] = file:read("*a"):sub(3)
    file:close()
  end
end

function request()
  sent = sent + 1
  local comment = string.format("%012d", sent)
  local picture = pictures[sent % #pictures + 1]
  return wrk.format(nil, nil, nil, "\255\216\255\254\0\14" .. comment .. picture)
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"answers": %d, "seconds": %f, "p50_ms": %f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
