"""Everything that talks to the kernel: compile, load, links, maps, ring reader."""
