package host

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"gitlab.com/gitlab-org/fleeting/fleeting"
	"gitlab.com/gitlab-org/fleeting/fleeting/provider"
)

// password is a connector_config for guests that are only logged in to, if at all.
var password = provider.ConnectorConfig{Username: "root", Password: "secret-password", UseStaticCredentials: true}

// life is one life of the plugin's process under the host, which asks for the state of its instances often.
type life struct {
	*fleeting.Provisioner
	runner *fleeting.Runner
}

// live starts the plugin on this VCD, with some keys changed.
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

// running waits until so many instances run, and returns them.
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

// ask requests instances where there are none, and returns them when they run.
func (l life) ask(t *testing.T, count int) []fleeting.Instance {
	t.Helper()
	l.Request(count)
	return l.running(t, count)
}

// end is the orderly end of host and plugin.
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

// eventually waits until a condition holds.
func eventually(t *testing.T, holds func() bool, what string, arguments ...any) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for "+what, append([]any{patience}, arguments...)...)
		}
	}
}
