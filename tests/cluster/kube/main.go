// Kube is one binary that is every part of a Kubernetes node, by the name it is called.
//
// One link step instead of five keeps the build short; the parts are the upstream ones.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

func main() {
	name := filepath.Base(os.Args[0])
	command := commandFor(name)
	if command == nil && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
		command = commandFor(name)
	}
	if command == nil {
		fmt.Fprintln(os.Stderr, "usage: kube PART [FLAG...], with PART one of "+
			"kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kubectl, provisioner")
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}

func commandFor(name string) *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllermanager.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	case "kubectl":
		return kubectl.NewDefaultKubectlCommand()
	case "provisioner":
		return newProvisionerCommand()
	}
	return nil
}
