package host

import (
	"bufio"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// Speed of the simulated VCD, as a multiple of real time.
	scale = 20
	// Maximum time for any wait.
	patience = 60 * time.Second
	// An API token that the simulated VCD knows.
	token = "sim-api-token"
)

// simulator is a running simulated VCD.
type simulator struct {
	url     string
	control string
	// Its guests answer on this port of their loopback addresses, which the guests of other simulators have too.
	guestPort int
}

// state is the part of the simulator's state that the tests read.
type state struct {
	Vapps []struct {
		Name string
		VMs  []struct{ Status string }
	}
	Tasks []struct{ Operation, Status, Target string }
}

// binary is the path of a built program.
func binary(t *testing.T, variable, name string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join("..", "..", "target", "release", name)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: build it with cargo build --release --workspace, or set %s", err, variable)
	}
	return path
}

// startSimulator starts a simulated VCD for this test. The SSH server at sshAddr serves its guests (none if empty).
func startSimulator(t *testing.T, sshAddr string) simulator {
	t.Helper()
	sim := simulator{guestPort: freePort(t)}
	arguments := []string{
		"--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--scale", strconv.Itoa(scale),
		"--guest-port", strconv.Itoa(sim.guestPort),
	}
	if sshAddr != "" {
		arguments = append(arguments, "--guest-forward", sshAddr)
	}
	command := exec.Command(binary(t, "SIM_BIN", "vcd-sim"), arguments...)
	command.Stderr = os.Stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	// If it prints nothing, this ends its output, and so the wait below.
	late := time.AfterFunc(patience, func() { command.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(stdout)
	for sim.control == "" && lines.Scan() {
		switch word, url, _ := strings.Cut(lines.Text(), " "); word {
		case "vcd":
			sim.url = strings.TrimSuffix(strings.TrimSuffix(url, "/"), "/api") + "/api"
		case "control":
			sim.control = strings.TrimSuffix(url, "/")
		}
	}
	if sim.url == "" || sim.control == "" {
		t.Fatalf("the simulator did not print its addresses: %+v, %v", sim, lines.Err())
	}
	return sim
}

// startGuests starts a simulated VCD whose guests accept logins.
func startGuests(t *testing.T) (simulator, *sshServer) {
	t.Helper()
	server, err := newSSHServer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	sim := startSimulator(t, server.Addr())
	server.Serve(sim.control)
	return sim, server
}

// freePort returns a port on which nothing listens, on any address, and which the system does not use for outgoing
// connections.
func freePort(t *testing.T) int {
	t.Helper()
	for {
		port := 10_000 + rand.IntN(20_000)
		if listener, err := net.Listen("tcp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(port))); err == nil {
			listener.Close()
			return port
		}
	}
}

// freeAddress returns an address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
}

// state returns the part of VCD's state that the tests read.
func (s simulator) state(t *testing.T) state {
	t.Helper()
	var state state
	if err := getJSON(s.control+"/state", &state); err != nil {
		t.Fatal(err)
	}
	return state
}

// vapps returns the names of the vApps in VCD.
func (s simulator) vapps(t *testing.T) []string {
	t.Helper()
	names := []string{}
	for _, vapp := range s.state(t).Vapps {
		names = append(names, vapp.Name)
	}
	return names
}

// waitForNoVapp waits until VCD has carried out the deletes that it accepted.
func (s simulator) waitForNoVapp(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { return len(s.vapps(t)) == 0 }, "the delete of all vApps")
}

// pluginConfig returns a plugin_config for the simulator's world, with some keys changed. A nil deletes a key.
func (s simulator) pluginConfig(changes map[string]any) map[string]any {
	config := map[string]any{
		"name":                "host-test",
		"url":                 s.url,
		"org":                 "ci-org",
		"token":               token,
		"virtual_datacenter":  "ci-vdc",
		"network":             "ci-net",
		"ip_allocation_mode":  "POOL",
		"instance_group_name": "host-test",
		"vapp_name_prefix":    "host-test",
		"catalog":             "ci-catalog",
		"template":            "ubuntu-22.04",
		"storage_profile":     "ssd",
		"cpu_count":           2,
		"cores_per_socket":    1,
		"memory_mb":           4096,
		"reconcile_interval":  "1s",
	}
	for key, value := range changes {
		if value == nil {
			delete(config, key)
		} else {
			config[key] = value
		}
	}
	return config
}
