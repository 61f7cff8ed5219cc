// Package sdk drives the simulated VCD with VMware's own Go SDK, the strictest client: a VCD's answers must contain
// what the SDK needs. The plugin takes no part in it, except in the test with a service account's token, which both
// use in turn.
//
//	cargo build --release --workspace
//	cd tests/sdk && go test ./...
//
// SIM_BIN and PLUGIN_BIN name other binaries than those in target/release.
package sdk
