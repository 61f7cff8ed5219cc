// Package host drives the built plugin with GitLab Runner's own library, on the simulated VCD. An SSH server behind
// the simulated guests accepts only the users that the guest customization allows.
//
//	cargo build --release --workspace
//	cd tests/host && go test -timeout 10m -parallel 8 ./...
//
// PLUGIN_BIN and SIM_BIN name other binaries than those in target/release. With DEEP=1, the tests that take minutes
// also run.
//
// The provisioning tests run on a real VCD instead if VCD_URL and the other variables in provisioning_test.go are
// set. They print which one they use. They create and delete VMs there, which must be reachable from here on port 22:
//
//	go test -v -timeout 2h -run TestProvisioning ./...
//
// No Go setting is needed. The module proxy has the pinned version of the fleeting module, but perhaps no information
// about it and no other versions, so `go mod download` and `go get` may fail although `go test` works. The checksum
// database may not have it either: go.sum here is complete, so Go does not need the database. Keep it complete when
// versions change.
package host
