package host

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// password is the connector_config of tests that need no particular credentials.
var password = provider.ConnectorConfig{Username: "root", Password: "secret-password", UseStaticCredentials: true}

// life is the plugin's process under the host, which often queries the states of its instances.
type life struct {
	*fleeting.Provisioner
	runner *fleeting.Runner
}

// live starts the plugin for this VCD, with some keys changed.
func (s simulator) live(t *testing.T, changes map[string]any, credentials provider.ConnectorConfig) life {
	t.Helper()
	return s.liveAs(t, binary(t, "PLUGIN_BIN", "fleeting-plugin-vcd"), changes, credentials)
}

// liveAs starts another program as the plugin.
func (s simulator) liveAs(t *testing.T, plugin string, changes map[string]any, credentials provider.ConnectorConfig) life {
	t.Helper()
	config, err := json.Marshal(s.pluginConfig(changes))
	if err != nil {
		t.Fatal(err)
	}
	runner, err := fleeting.RunPlugin(plugin, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(runner.Kill)
	credentials.ProtocolPort = s.guestPort
	credentials.Timeout = patience
	ctx, cancel := context.WithTimeout(t.Context(), initTimeout)
	defer cancel()
	provisioner, err := fleeting.Init(ctx, nil, runner.InstanceGroup(), fleeting.WithMaxSize(10),
		fleeting.WithUpdateInterval(100*time.Millisecond), fleeting.WithUpdateIntervalWhenExpecting(100*time.Millisecond),
		fleeting.WithInstanceGroupSettings(provider.Settings{ConnectorConfig: credentials}))
	if err != nil {
		t.Fatal(err)
	}
	return life{provisioner, runner}
}

// running waits until this many instances run, and returns them.
func (l life) running(t *testing.T, count int) []fleeting.Instance {
	t.Helper()
	var running []fleeting.Instance
	eventually(t, func() bool {
		running = nil
		for _, instance := range l.Instances() {
			if instance.State() == provider.StateRunning {
				running = append(running, instance)
			}
		}
		return len(running) == count
	}, "%d instances to run", count)
	return running
}

// requestRunning requests instances if there are none, and returns them when they run.
func (l life) requestRunning(t *testing.T, count int) []fleeting.Instance {
	t.Helper()
	l.Request(count)
	return l.running(t, count)
}

// end shuts host and plugin down.
func (l life) end() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l.Shutdown(ctx)
	l.runner.Kill()
}

// reaches waits until an instance is in a state.
func reaches(t *testing.T, instance fleeting.Instance, state provider.State) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !instance.WaitForState(ctx, state) {
		t.Fatalf("%s is %v, not %v, after %v", instance.ID(), instance.State(), state, patience)
	}
}

// eventually waits until a condition is true.
func eventually(t *testing.T, holds func() bool, what string, arguments ...any) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for "+what, append([]any{patience}, arguments...)...)
		}
	}
}
