-- POST an image with wrk: wrk [options] -s post.lua URL -- IMAGE
-- Each request appends its own number, which decoders ignore: the service computes equal requests once.
local image, requests, threads = nil, 0, 0

function setup(thread)
  thread:set("id", threads)
  threads = threads + 1
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  image = file:read("*a")
  file:close()
end

function request()
  requests = requests + 1
  -- A box of 26 bytes called `free`, which AVIF allows at the end of a file.
  return wrk.format("POST", nil, nil, image .. string.format("\0\0\0\26free%06d%012d", id, requests))
end
