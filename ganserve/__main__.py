from ganserve.cli import main

main()
