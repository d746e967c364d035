"""The scripts of the cache. Each is loaded behind tenant.lua."""
