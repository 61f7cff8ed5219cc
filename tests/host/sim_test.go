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
	// The simulated VCD is so much faster than a real one.
	scale = 20
	// What is waited for must come within this time.
	patience = 60 * time.Second
	// An API token that the simulated VCD knows.
	token = "sim-api-token"
)

// simulator is a running simulated VCD.
type simulator struct {
	url     string
	control string
	// Its guests answer on this port of their own loopback addresses, which those of others have as well.
	guestPort int
}

// state is the part of the simulator's state that the tests look at.
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

// startSimulator starts a simulated VCD for this test, whose guests are served by an SSH server at sshAddr (none if empty).
func startSimulator(t *testing.T, control, sshAddr string) simulator {
	t.Helper()
	sim := simulator{guestPort: freePort(t)}
	arguments := []string{
		"--listen", "127.0.0.1:0", "--control", control, "--scale", strconv.Itoa(scale),
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
	// If it says nothing, this ends its output, and with it the wait below.
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
		t.Fatalf("the simulator did not say where it is: %+v, %v", sim, lines.Err())
	}
	return sim
}

// startGuests starts a simulated VCD whose guests can be logged in to.
func startGuests(t *testing.T) (simulator, *sshServer) {
	t.Helper()
	// Each must know the other's address: the control port's is chosen first.
	control := freeAddress(t)
	server, err := startSSHServer("http://" + control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return startSimulator(t, control, server.Addr()), server
}

// freePort is a port at which nothing listens, on any address, and which no connection going out is given by the system.
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

// freeAddress is an address that nothing listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
}

// state is all that the tests look at in VCD.
func (s simulator) state(t *testing.T) state {
	t.Helper()
	var state state
	if err := getJSON(s.control+"/state", &state); err != nil {
		t.Fatal(err)
	}
	return state
}

// vapps are the names of the vApps that VCD has.
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
	eventually(t, func() bool { return len(s.vapps(t)) == 0 }, "the end of all vApps")
}

// pluginConfig is a plugin_config for the simulator's world, with some keys changed; a nil takes a key away.
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
