package host

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// The host gives up an Init after a minute. The plugin must have reported the error well before.
const initTimeout = 30 * time.Second

// start runs the plugin with this plugin_config. The error is what GitLab Runner would log.
func start(t *testing.T, plugin string, config []byte, connector provider.ConnectorConfig, maxSize int) error {
	t.Helper()
	runner, err := fleeting.RunPlugin(plugin, config)
	if err != nil {
		t.Fatalf("the plugin did not start: %v", err)
	}
	defer runner.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), initTimeout)
	defer cancel()
	provisioner, err := fleeting.Init(ctx, nil, runner.InstanceGroup(), fleeting.WithMaxSize(maxSize),
		fleeting.WithInstanceGroupSettings(provider.Settings{ConnectorConfig: connector}))
	if err == nil {
		provisioner.Shutdown(ctx)
	}
	if ctx.Err() != nil {
		t.Errorf("no answer within %v", initTimeout)
	}
	return err
}

func TestBadConfigs(t *testing.T) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim := startSimulator(t, "")

	// A VCD that accepts connections and never answers: the kernel accepts them.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	nowhere := freeAddress(t)

	changed := func(key string, value any) []byte {
		config, err := json.Marshal(sim.pluginConfig(map[string]any{key: value}))
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	for _, test := range []struct {
		name   string
		config []byte
		// Parts of the error, in upper or lower case.
		expected []string
	}{
		{"empty", nil, []string{"plugin_config is empty"}},
		{"null", []byte("null"), []string{"plugin_config is missing"}},
		{"not JSON", []byte("name = 5"), []string{"plugin_config is not JSON", "line 1"}},
		{"a list", []byte("[]"), []string{"expected an object, found a list"}},
		{"nothing set", []byte("{}"), []string{
			"missing required plugin config: name;", "missing required plugin config: token (or token_file, or $VCD_TOKEN);",
			"missing required plugin config: memory_mb",
		}},
		{"no token", changed("token", nil), []string{"missing required plugin config: token"}},
		{"empty org", changed("org", ""), []string{"missing required plugin config: org"}},
		{"org a number", changed("org", 5), []string{"org: expected a string, found a number"}},
		{"cpu_count a string", changed("cpu_count", "2"), []string{"cpu_count: expected a whole number, found a string"}},
		{"cpu_count 0", changed("cpu_count", 0), []string{"missing required plugin config: cpu_count"}},
		{"cores", changed("cores_per_socket", 3), []string{"cores_per_socket: 3 does not divide"}},
		{"memory", changed("memory_mb", 4095), []string{"memory_mb: 4095 is not a multiple of 4"}},
		{"mode", changed("ip_allocation_mode", "STATIC"), []string{"invalid ip_allocation_mode: STATIC"}},
		{"duration", changed("create_timeout", 20), []string{"create_timeout: expected a duration"}},
		{"prefix", changed("vapp_name_prefix", "ci*"), []string{"vapp_name_prefix", "'*'"}},
		{"debug address", changed("debug_server_addr", "27060"), []string{"debug_server_addr: expected HOST:PORT"}},
		{"url without scheme", changed("url", "vcd.example.com/api"), []string{"url: must begin with https://"}},
		{"url of a page", changed("url", strings.TrimSuffix(sim.url, "/api")+"/tenant/ci-org"), []string{"url: has a path that does not end in /api"}},

		{"nobody there", changed("url", "http://"+nowhere+"/api"), []string{"refused"}},
		{"a silent VCD", changed("url", "http://"+silent.Addr().String()+"/api"), []string{"time"}},
		{"no VCD", changed("url", sim.control), []string{"read the API versions"}},
		{"refused token", changed("token", "another-token"), []string{"token"}},
		{"unknown org", changed("org", "no-such-org"), []string{"no-such-org"}},
		{"unknown vdc", changed("virtual_datacenter", "no-such-vdc"), []string{"no-such-vdc"}},
		{"unknown network", changed("network", "no-such-network"), []string{"no-such-network"}},
		{"unknown catalog", changed("catalog", "no-such-catalog"), []string{"no-such-catalog"}},
		{"unknown template", changed("template", "no-such-template"), []string{"no-such-template"}},
		{"unknown profile", changed("storage_profile", "no-such-profile"), []string{"no-such-profile"}},
		{"two VMs", changed("template", "two-vms"), []string{"two-vms"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			isClear(t, start(t, plugin, test.config, password, 3), test.expected)
			if vapps := sim.vapps(t); len(vapps) > 0 {
				t.Errorf("vApps were created: %q", vapps)
			}
		})
	}

	t.Run("all unknown names together", func(t *testing.T) {
		config, err := json.Marshal(sim.pluginConfig(map[string]any{
			"network": "no-such-network", "catalog": "no-such-catalog", "storage_profile": "no-such-profile",
		}))
		if err != nil {
			t.Fatal(err)
		}
		isClear(t, start(t, plugin, config, password, 3), []string{"no-such-network", "no-such-catalog", "no-such-profile"})
	})
}

func TestURLs(t *testing.T) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim := startSimulator(t, "")
	origin := strings.TrimSuffix(sim.url, "/api")
	for _, url := range []string{origin, origin + "/", origin + "/api", origin + "/api/"} {
		config, err := json.Marshal(sim.pluginConfig(map[string]any{"url": url}))
		if err != nil {
			t.Fatal(err)
		}
		if err := start(t, plugin, config, password, 3); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestBadConnectors(t *testing.T) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim := startSimulator(t, "")
	config, err := json.Marshal(sim.pluginConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	static := func(change func(*provider.ConnectorConfig)) provider.ConnectorConfig {
		connector := password
		change(&connector)
		return connector
	}
	for _, test := range []struct {
		name      string
		connector provider.ConnectorConfig
		expected  string
	}{
		{"nothing to log in with", static(func(c *provider.ConnectorConfig) { c.Password = "" }), "use_static_credentials"},
		{"no key", static(func(c *provider.ConnectorConfig) { c.Key = []byte("secret-key") }), "key_path"},
		{"an unknown OS", static(func(c *provider.ConnectorConfig) { c.OS = "darwin" }), "os: expected linux"},
		{"an architecture", static(func(c *provider.ConnectorConfig) { c.Arch = "x86_64" }), "arch: expected amd64"},
		{"a user name", static(func(c *provider.ConnectorConfig) { c.Username = "a:b" }), "username"},
	} {
		t.Run(test.name, func(t *testing.T) {
			isClear(t, start(t, plugin, config, test.connector, 3), []string{test.expected})
		})
	}
}

func TestMaxInstancesAboveMaxSize(t *testing.T) {
	plugin := binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	sim := startSimulator(t, "")
	for size, changes := range map[int]map[string]any{129: nil, 11: {"max_size": 10}} {
		config, err := json.Marshal(sim.pluginConfig(changes))
		if err != nil {
			t.Fatal(err)
		}
		err = start(t, plugin, config, password, size)
		if !errors.Is(err, fleeting.ErrMaxSizeExceedsInstanceGroupMax) {
			t.Errorf("max_instances %d: %v", size, err)
		}
		if err := start(t, plugin, config, password, size-1); err != nil {
			t.Errorf("max_instances %d: %v", size-1, err)
		}
	}
	sim.waitForNoVapp(t)
}

// isClear checks that an error is one line that contains the expected text and no secret.
func isClear(t *testing.T, err error, expected []string) {
	t.Helper()
	if err == nil {
		t.Fatal("Init accepted it")
	}
	said := err.Error()
	t.Log(said)
	if strings.ContainsAny(said, "\r\n") || len(said) > 2000 {
		t.Errorf("not one short line: %q", said)
	}
	for _, part := range expected {
		if !strings.Contains(strings.ToLower(said), strings.ToLower(part)) {
			t.Errorf("does not contain %q: %s", part, said)
		}
	}
	for _, secret := range []string{token, "another-token", password.Password, "secret-key"} {
		if strings.Contains(said, secret) {
			t.Errorf("contains a secret: %s", said)
		}
	}
}
