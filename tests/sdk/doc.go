// Package sdk drives the simulated VCD with VMware's own Go SDK, the strictest reader of it that there is: what a VCD's
// answers must hold is what the SDK needs of them. The plugin has no part in it,
// but for a service account's token that both take turns with.
//
//	cargo build --release --workspace
//	cd tests/sdk && go test ./...
//
// SIM_BIN and PLUGIN_BIN name other binaries than those of target/release.
package sdk
