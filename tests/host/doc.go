// Package host drives the built plugin with the real host's library, against the simulated VCD, with an SSH server behind
// the simulated guests that lets in only whom the guest customization let in.
//
//	cargo build --release --workspace
//	cd tests/host && go test -timeout 10m -parallel 8 ./...
//
// PLUGIN_BIN and SIM_BIN name other binaries than those of target/release. With DEEP=1, the tests that take minutes run, too.
//
// The provisioning tests run on a real VCD instead if VCD_URL and the other variables in provisioning_test.go are set; they
// say which of the two it was. VMs are made there and deleted, and must be reachable from here on port 22:
//
//	go test -v -timeout 2h -run TestProvisioning ./...
//
// No Go setting is needed. The module proxy serves the pinned version of the fleeting module, but perhaps no information
// about it or other versions of it, so `go mod download` and `go get` may fail where `go test` works. Nor may it be in the
// checksum database: go.sum here is complete, and Go then asks no database. Keep it complete when versions change.
package host
