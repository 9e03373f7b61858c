package main

import "flag"

// faults says that strace is installed, that the tests may mount file systems,
// and that they may take minutes.
var faults = flag.Bool("faults", false, "test with disks that fail and power cuts, as root, with strace, which must be installed; and longer")
