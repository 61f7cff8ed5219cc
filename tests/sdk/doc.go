// Package sdk drives the simulated VCD with VMware's own Go SDK, the strictest reader of it that there is: what a VCD's
// answers must hold is what the SDK needs of them. The plugin has no part in it.
//
//	cargo build --release --workspace
//	cd tests/sdk && go test ./...
//
// SIM_BIN names another simulator than that of target/release.
package sdk
