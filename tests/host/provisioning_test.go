package host

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting/integration"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// variables name a real VCD and its objects for VMs. If all of them are set, the provisioning tests run on that VCD.
var variables = []struct {
	name, key string
	number    bool
}{
	{"VCD_URL", "url", false},
	{"VCD_ORG", "org", false},
	{"VCD_TOKEN", "token", false},
	{"VCD_VDC", "virtual_datacenter", false},
	{"VCD_NETWORK", "network", false},
	{"VCD_NETWORK_ALLOCATION_MODE", "ip_allocation_mode", false},
	{"VCD_CATALOG", "catalog", false},
	{"VCD_TEMPLATE", "template", false},
	{"VCD_VAPP_NAME_PREFIX", "vapp_name_prefix", false},
	{"VCD_STORAGE_PROFILE", "storage_profile", false},
	{"VCD_CPU_COUNT", "cpu_count", true},
	{"VCD_CORES_PER_SOCKET", "cores_per_socket", true},
	{"VCD_MEMORY_MB", "memory_mb", true},
	{"VCD_DISK_SIZE_GB", "disk_size_gb", true},
}

// realConfig is a plugin_config for the VCD in the environment; nil if there is none.
func realConfig(t *testing.T) map[string]any {
	t.Helper()
	if os.Getenv("VCD_URL") == "" {
		return nil
	}
	config := map[string]any{"name": "host-test", "instance_group_name": "host-test"}
	missing := []string{}
	for _, variable := range variables {
		text := os.Getenv(variable.name)
		number, err := strconv.Atoi(text)
		switch {
		case text == "":
			missing = append(missing, variable.name)
		case !variable.number:
			config[variable.key] = text
		case err != nil:
			t.Fatalf("%s is no number: %q", variable.name, text)
		default:
			config[variable.key] = number
		}
	}
	if len(missing) > 0 {
		t.Fatalf("VCD_URL names a VCD, but these are not set: %s", strings.Join(missing, ", "))
	}
	return config
}

// provision runs fleeting's own conformance test: it creates VMs, logs in to one, and deletes all.
func provision(t *testing.T, credentials provider.ConnectorConfig) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	credentials.UseStaticCredentials = true
	if config := realConfig(t); config != nil {
		t.Logf("on the VCD at %s", config["url"])
		credentials.Timeout = 10 * time.Minute
		integration.TestProvisioning(t, plugin, integration.Config{
			PluginConfig: config, ConnectorConfig: credentials, MaxInstances: 3,
		})
		return
	}
	sim, server := startGuests(t)
	t.Logf("on the simulated VCD at %s", sim.url)
	credentials.ProtocolPort = sim.guestPort
	credentials.Timeout = time.Minute
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("refused logins: %q", server.Refused())
		}
	})
	integration.TestProvisioning(t, plugin, integration.Config{
		PluginConfig: sim.pluginConfig(nil), ConnectorConfig: credentials, MaxInstances: 3,
	})
	sim.waitForNoVapp(t)
}

func TestProvisioningPassword(t *testing.T) {
	for _, user := range []string{"root", "ci"} {
		t.Run(user, func(t *testing.T) {
			provision(t, provider.ConnectorConfig{Username: user, Password: `it's "a" $secret\`})
		})
	}
}

func TestProvisioningKey(t *testing.T) {
	for _, user := range []string{"root", "ci"} {
		t.Run(user, func(t *testing.T) {
			_, private := newKey(t)
			provision(t, provider.ConnectorConfig{Username: user, Key: private})
		})
	}
}

// TestRealConfig describes the simulated VCD in the environment like a real one: the plugin accepts the result.
func TestRealConfig(t *testing.T) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim := startSimulator(t, "")
	world := sim.pluginConfig(map[string]any{"disk_size_gb": 0})
	for _, variable := range variables {
		switch value := world[variable.key].(type) {
		case string:
			t.Setenv(variable.name, value)
		case int:
			t.Setenv(variable.name, strconv.Itoa(value))
		default:
			t.Fatalf("%s: %v", variable.key, value)
		}
	}
	config := realConfig(t)
	for _, variable := range variables {
		if config[variable.key] != world[variable.key] {
			t.Errorf("%s: %v, not %v", variable.key, config[variable.key], world[variable.key])
		}
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := start(t, plugin, text, password, 3); err != nil {
		t.Error(err)
	}
}
